"""Who does many independent pieces of work: this process, several of this machine, or a cluster."""
