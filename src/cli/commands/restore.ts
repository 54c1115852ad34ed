// reprise restore: a task back from its checkpoint.

import { findCheckpoint } from "../../store/checkpoints.ts";
import { restoreTask } from "../../store/lifecycle.ts";

export async function restore(
  name: string,
  options: { checkpoint?: number; newPids?: boolean },
): Promise<void> {
  const checkpoint = findCheckpoint(name, options.checkpoint);
  const { pid } = await restoreTask(checkpoint, { newPidNamespace: options.newPids === true });
  process.stdout.write(`${name} runs again as pid ${pid}, from checkpoint ${checkpoint.number}\n`);
}
