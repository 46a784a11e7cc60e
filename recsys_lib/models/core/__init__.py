"""What the models are made of: the contract, options, files, checks, histories, training."""
