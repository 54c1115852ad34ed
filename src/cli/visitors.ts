// Telling, before a container is saved, who is in it and will not be in the checkpoint.

import type { ContainerEngine } from "../containers/container-engine.ts";

/** Warns on standard error of processes that `exec` has started. */
export async function warnOfVisitors(engine: ContainerEngine, container: string): Promise<void> {
  const count = (await engine.visitors(container)) ?? 0;
  if (count === 0) return;
  const who = count === 1 ? "a process" : `${count} processes`;
  process.stderr.write(
    `reprise: warning: ${who} in ${container} came in from outside (exec), and will not be in the checkpoint.\n`,
  );
}
