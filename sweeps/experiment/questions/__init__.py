"""Questions of a page, the rule that decides them, and the seeds or folds that they still need."""
