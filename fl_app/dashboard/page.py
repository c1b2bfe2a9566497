"""The script that Streamlit runs anew for each tab and each interaction."""

from fl_app.dashboard.app import main

main()
