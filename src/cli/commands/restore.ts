// reprise restore: a task back from its checkpoint.

import { findCheckpoint } from "../../store/checkpoints.ts";
import { explainRestore, restoreTask } from "../../store/lifecycle.ts";

export async function restore(
  name: string,
  options: { checkpoint?: number; newPids?: boolean; explain?: boolean },
): Promise<void> {
  const checkpoint = findCheckpoint(name, options.checkpoint);
  const newPidNamespace = options.newPids === true;
  if (options.explain === true) {
    for (const line of await explainRestore(checkpoint, { newPidNamespace }))
      process.stdout.write(`${line}\n`);
    return;
  }
  const { pid } = await restoreTask(checkpoint, { newPidNamespace });
  process.stdout.write(`${name} runs again as pid ${pid}, from checkpoint ${checkpoint.number}\n`);
}
