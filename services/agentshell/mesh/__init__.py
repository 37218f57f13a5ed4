"""What makes a process a member of the mesh. Knows no service."""
