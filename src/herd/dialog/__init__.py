"""Messages -> tokens with a segment code per token -> masks; packing of dialogs; preference rows."""
