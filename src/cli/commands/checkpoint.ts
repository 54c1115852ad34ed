// reprise checkpoint: a running task to images.

import { RepriseError } from "../../errors.ts";
import {
  engineOf,
  parseReference,
  type ContainerReference,
} from "../../containers/container-engine.ts";
import { findCheckpoint } from "../../store/checkpoints.ts";
import { checkpointTask, explainCheckpoint } from "../../store/lifecycle.ts";
import { bytesText, microsText } from "../text.ts";
import { warnOfVisitors } from "../visitors.ts";

export async function checkpoint(
  name: string,
  options: { leaveRunning?: boolean; explain?: boolean; strict?: boolean },
): Promise<void> {
  const reference = parseReference(name);
  if (reference !== undefined) return checkpointContainer(reference, options);
  if (options.explain === true) {
    for (const line of await explainCheckpoint(name)) process.stdout.write(`${line}\n`);
    return;
  }
  const leaveRunning = options.leaveRunning === true;
  const { checkpoint: made, result } = await checkpointTask(name, {
    leaveRunning,
    strict: options.strict ?? false,
  });
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

async function checkpointContainer(
  reference: ContainerReference,
  options: { leaveRunning?: boolean; explain?: boolean },
): Promise<void> {
  if (options.explain === true) {
    throw new RepriseError(
      "BAD_ARGUMENT",
      "--explain is for tasks of reprise, not for containers",
      {
        hint: "Try criu dump with the pid of the container's first process.",
      },
    );
  }
  const { engine: name, container } = reference;
  const leaveRunning = options.leaveRunning === true;
  const engine = await engineOf(reference);
  await warnOfVisitors(engine, container);
  const made = await engine.checkpoint(container, { leaveRunning });
  process.stdout.write(`${container}: checkpoint ${made}\n`);
  process.stdout.write(
    leaveRunning
      ? `${container} runs on\n`
      : `${container} has stopped; bring it back: reprise restore ${name}:${container}\n`,
  );
}
