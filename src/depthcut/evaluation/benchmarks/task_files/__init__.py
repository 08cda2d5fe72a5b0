"""lm-eval tasks on the user's own files: the names, prompts and scores of lm-eval's own tasks.

Each YAML here asks what lm-eval's task of the same name asks (version 0.4.13), of a local file
in its publisher's fields. The paths in them are relative: to the working directory for
`lm_eval --include_path`, to a folder of data for `depthcut evaluate`.
"""
