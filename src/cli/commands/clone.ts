// reprise clone: a second task that goes on where the first one is, in a pid namespace of its own.

import { RepriseError } from "../../errors.ts";
import {
  chooseCheckpoint,
  engineOf,
  parseReference,
  type ContainerReference,
} from "../../containers/container-engine.ts";
import { warnOfMisfits } from "../misfits.ts";
import { checkpointNumber, visible } from "../text.ts";
import { warnOfVisitors } from "../visitors.ts";
import { findCheckpoint } from "../../store/checkpoints.ts";
import { checkpointTask, cloneCheckpoint } from "../../store/lifecycle.ts";
import { refuseTakenName } from "../../store/tasks.ts";

export async function clone(
  name: string,
  newName: string,
  options: { checkpoint?: string },
): Promise<void> {
  const reference = parseReference(name);
  if (reference !== undefined) return cloneContainer(reference, newName, options);
  // Asked before anything is frozen; taking the name is what decides.
  await refuseTakenName(newName);
  const number =
    checkpointNumber(options.checkpoint) ??
    (await checkpointTask(name, { leaveRunning: true })).checkpoint.number;
  const checkpoint = findCheckpoint(name, number);
  if (options.checkpoint !== undefined) warnOfMisfits(checkpoint.imagesDir);
  const { pid } = await cloneCheckpoint(checkpoint, newName, {
    onCommonFile: (path) =>
      process.stderr.write(
        `reprise: warning: ${name} and ${newName} can both write into ${visible(path)}, which is there once.\n`,
      ),
  });
  process.stdout.write(`${newName} runs as pid ${pid}, from checkpoint ${number} of ${name}\n`);
}

async function cloneContainer(
  reference: ContainerReference,
  newName: string,
  options: { checkpoint?: string },
): Promise<void> {
  const { container } = reference;
  const engine = await engineOf(reference);
  // Asked before anything is frozen, too.
  if (await engine.isThere(newName)) {
    throw new RepriseError("NAME_TAKEN", `there is a container ${newName} already`, {
      hint: "Choose another name, or remove that container.",
    });
  }
  if (options.checkpoint === undefined) await warnOfVisitors(engine, container);
  const checkpoint =
    options.checkpoint === undefined
      ? await engine.checkpoint(container, { leaveRunning: true, keepFiles: true })
      : await chooseCheckpoint(engine, container, options.checkpoint);
  if (options.checkpoint !== undefined) warnOfMisfits(await engine.images(container, checkpoint));
  for (const note of await engine.clone(container, { checkpoint, newName }))
    process.stdout.write(`${newName}: ${note}\n`);
  process.stdout.write(`${newName} runs, from checkpoint ${checkpoint} of ${container}\n`);
}
