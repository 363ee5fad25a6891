"""What `herd serve` answers: requests and answers of OpenAI's interface."""
