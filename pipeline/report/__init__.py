"""Pages and pictures for people. What a run decided is in its JSON files; nothing here decides anything."""
