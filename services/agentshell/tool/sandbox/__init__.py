"""Where tools run that packs bring. `sandbox` is its front; a tier is one way to lock a tool up."""
