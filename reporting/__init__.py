"""What people look at: progress, tables, contact sheets, pages. Nothing here measures, generates or knows Ray."""
