"""The device's side of an update: machine (a pure table), plan, ports, fetch, steps, reporter, agent."""
