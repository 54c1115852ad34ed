// The executable that answers like CRIU.

import { runCommand } from "./run.ts";

void main(process.argv.slice(2));

/** Runs the command line and sets the exit code. */
async function main(args: readonly string[]): Promise<void> {
  let hasActed = false;
  process.exitCode = await runCommand(args, () => (hasActed = true));
  // The build runs actions one after the other in one process.
  if (!hasActed || process.env["REPRISE_WARM_UP"] !== undefined) return;
  // Tasks may have been restored by now, and a dump that is done should not take 6 ms more for Node's own end.
  const { exitNow } = await import("../sys/process.ts");
  exitNow(process.exitCode);
}
