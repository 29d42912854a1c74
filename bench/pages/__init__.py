"""Tables and pictures of what results/ holds."""
