"""The paper's tables and figures again: recipes, runs at full or mini scale, the paper's figures beside ours."""
