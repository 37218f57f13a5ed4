"""Tools of Model Context Protocol servers, by the official SDK, which is imported where one is first called."""
