"""Records to what people and other tools read: one HTML page, figures, CSV, mergekit YAML."""
