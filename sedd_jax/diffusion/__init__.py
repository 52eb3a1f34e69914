"""The paper: noise, graphs, score entropy and reverse steps, as pure functions of arrays."""
