// reprise restore: a task back from its checkpoint.

import { chooseCheckpoint, engineOf, parseReference } from "../../containers/container-engine.ts";
import { warnOfMisfits } from "../misfits.ts";
import { checkpointNumber } from "../text.ts";
import { findCheckpoint } from "../../store/checkpoints.ts";
import { explainRestore, restoreTask } from "../../store/lifecycle.ts";

export async function restore(
  name: string,
  options: { checkpoint?: string; newPids?: boolean; explain?: boolean },
): Promise<void> {
  const reference = parseReference(name);
  if (reference !== undefined) {
    const engine = await engineOf(reference);
    const chosen = await chooseCheckpoint(engine, reference.container, options.checkpoint);
    warnOfMisfits(await engine.images(reference.container, chosen));
    await engine.restore(reference.container, chosen);
    process.stdout.write(`${reference.container} runs again, from checkpoint ${chosen}\n`);
    return;
  }
  const checkpoint = findCheckpoint(name, checkpointNumber(options.checkpoint));
  const newPidNamespace = options.newPids === true;
  if (options.explain === true) {
    for (const line of await explainRestore(checkpoint, { newPidNamespace }))
      process.stdout.write(`${line}\n`);
    return;
  }
  warnOfMisfits(checkpoint.imagesDir);
  const { pid } = await restoreTask(checkpoint, { newPidNamespace });
  process.stdout.write(`${name} runs again as pid ${pid}, from checkpoint ${checkpoint.number}\n`);
}
