"""What a player, a model or an env can do, asked once."""
