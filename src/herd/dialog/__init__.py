"""Messages -> tokens with a segment code per token -> masks; preference rows."""
