// How many processors there are for work side by side.

/** Node's `os` takes half a millisecond to load, so it is loaded when this is asked for: few commands do. */
export function processorCount(): number {
  return process.getBuiltinModule("node:os").availableParallelism();
}
