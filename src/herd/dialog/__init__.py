"""Messages -> tokens with a segment code per token -> masks; preference rows and the rule that grades them."""
