// reprise checkpoint: a running task to images.

import { findCheckpoint } from "../../store/checkpoints.ts";
import { checkpointTask, explainCheckpoint } from "../../store/lifecycle.ts";
import { bytesText, microsText } from "../text.ts";

export async function checkpoint(
  name: string,
  options: { leaveRunning?: boolean; explain?: boolean },
): Promise<void> {
  if (options.explain === true) {
    for (const line of await explainCheckpoint(name)) process.stdout.write(`${line}\n`);
    return;
  }
  const leaveRunning = options.leaveRunning === true;
  const { checkpoint: made, result } = await checkpointTask(name, { leaveRunning });
  const { bytes } = findCheckpoint(name, made.number);
  const { tasks, frozen_time: frozen } = result.stats;
  process.stdout.write(
    `${name}: checkpoint ${made.number}, ${tasks} ${tasks === 1 ? "process" : "processes"}, ` +
      `${bytesText(bytes)}, frozen for ${microsText(frozen)}\n`,
  );
  process.stdout.write(
    leaveRunning
      ? `${name} runs on\n`
      : `${name} has ended; bring it back: reprise restore ${name}\n`,
  );
}
