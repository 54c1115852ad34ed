// The engine in a process of its own, for trials in which it is killed. It stops itself when everything is loaded, right
// before the work begins; the trial lets it go on and knows from there how far it has come.

import { checkpoint, type CheckpointOptions } from "../../src/engine/checkpoint.ts";
import { restore, type RestoreOptions } from "../../src/engine/restore.ts";
import { readdirSync } from "node:fs";
import { RepriseError } from "../../src/errors.ts";
import { readStatIfAlive } from "../../src/proc/stat.ts";

/** What the child is told by its one argument, as JSON. */
export type EngineOrder =
  | ({ readonly action: "dump" } & CheckpointOptions)
  | ({ readonly action: "restore" } & RestoreOptions);

/** How the child ends when an error comes; 0 is success. */
export const ENGINE_FAILED = 3;

void main(JSON.parse(process.argv[2] ?? "") as EngineOrder);

async function main(order: EngineOrder): Promise<void> {
  process.kill(process.pid, "SIGSTOP");
  try {
    if (order.action === "dump") await checkpoint(order);
    else {
      await restore(order);
      process.stderr.write("restored\n");
    }
    process.exit(0);
  } catch (error) {
    process.stderr.write(
      `${error instanceof RepriseError ? `${error.code}: ${error.message}` : String(error)}\n`,
    );
    // As init of a pid namespace the engine sees all who are left.
    if (process.pid === 1) process.stderr.write(`left: ${othersAlive().join() || "none"}\n`);
    process.exit(ENGINE_FAILED);
  }
}

function othersAlive(): number[] {
  const pids = readdirSync("/proc").map(Number).filter(Number.isInteger);
  return pids.filter((pid) => pid !== 1 && (readStatIfAlive(pid)?.state ?? "Z") !== "Z");
}
