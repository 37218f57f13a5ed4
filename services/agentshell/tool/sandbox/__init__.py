"""Where packs' tools run. `sandbox` is the entry point; a tier is one way to confine a tool."""
