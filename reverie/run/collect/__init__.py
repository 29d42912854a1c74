"""Where rows come from: envs of the host, envs of the device, a script, other runs and recorded episodes."""
