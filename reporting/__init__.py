"""What people look at: progress, tables, contact sheets, pages."""
