"""What a study is: its file, its arms, and which of them are compared."""
