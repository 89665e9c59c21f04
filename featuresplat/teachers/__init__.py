"""Feature teachers: one file, one teacher."""
