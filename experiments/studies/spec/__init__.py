"""What a study is: its file, its arms, and the trials that its protocol wants."""
