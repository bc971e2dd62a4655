"""What is trained: models of the zoo, fetched checkpoints, folders, GGUF files and names on the hub."""
