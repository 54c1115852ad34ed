// The image files that tasks read by themselves: pages, queues, content of deleted files. They are opened by name in the directory of
// the set; but the root of a user namespace is nobody there, so the seed opens them all while it still is who the engine is. It does so, too, for
// tasks that share a table of descriptors, where the lowest free number, which open(2) gives, may be placed by another one meanwhile.

import { readdirSync } from "node:fs";
import { join } from "node:path";
import { PARENT_LINK } from "../images/pagemap-set.ts";
import { IMAGE_KINDS, type KindSpec } from "../images/names.ts";
import type { ImageSetReader } from "../images/image-set.ts";
import { F_DUPFD_CLOEXEC, O_CLOEXEC, O_RDONLY } from "../sys/abi/fcntl.ts";
import type { Program, Ref } from "../tracee/program.ts";

/** Where tasks find the image files. */
export interface ImageFiles {
  /** Descriptor of the directory in every task. */
  readonly directory: number;
  /** Descriptors of files that are open in every task, by name. */
  readonly opened: ReadonlyMap<string, number>;
}

/** Adds the call that opens an image file: a descriptor of the caller's own, whose position he has to set. */
export function openImage(program: Program, files: ImageFiles, name: string): Ref {
  const label = `open ${name}`;
  const opened = files.opened.get(name);
  // Above the tasks' own descriptors: another task of a shared table may be placing those at the same time.
  if (opened !== undefined)
    return program.call("fcntl", [opened, F_DUPFD_CLOEXEC, files.directory], { label });
  return program.call("openat", [files.directory, program.string(name), O_RDONLY | O_CLOEXEC, 0], {
    label,
  });
}

/** Names of the files that tasks read, those of parent sets by their way there. */
export function payloadNames(reader: ImageSetReader): string[] {
  const own = readdirSync(reader.dir).filter((name) => PAYLOAD.test(name));
  const parent = reader.parent();
  const inherited = parent === undefined ? [] : payloadNames(parent);
  return [...own, ...inherited.map((name) => join(PARENT_LINK, name))];
}

/** Kinds of images that hold more than messages. */
const PAYLOAD = new RegExp(
  `^(${Object.entries<KindSpec>(IMAGE_KINDS)
    .filter(([, { magic, payload }]) => magic === undefined || payload !== undefined)
    .map(([kind]) => kind)
    .join("|")})(-[0-9a-f]+)?\\.`,
);
