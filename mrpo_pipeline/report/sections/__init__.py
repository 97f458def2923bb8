"""What each section of the page says: one file for each, from the folder to words, tables and plots."""
