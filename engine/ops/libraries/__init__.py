"""Optional GPU libraries behind our own signatures; nothing of them is imported before an op asks for it."""
