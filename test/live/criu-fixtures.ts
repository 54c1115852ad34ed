// Lays out what the image sets in test/fixtures/criu-images name: the binaries that were running (their sizes, modes and
// build ids are in the images), and the files that they had open, all under /tmp/criu-fx.

import {
  chmodSync,
  copyFileSync,
  linkSync,
  mkdirSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { loadImageSet, type LoadedSet } from "../../src/images/check-set.ts";
import { ImageSetReader } from "../../src/images/image-set.ts";
import { readPidUsage } from "../../src/proc/pid-usage.ts";

const FIXTURES = fileURLToPath(new URL("../fixtures/criu-images/", import.meta.url));
const PLACE = "/tmp/criu-fx";
const RUN = join(PLACE, "run");

/** Where the images of a set lie; of a chain, those of its last dump. */
export function imagesOf(set: string): string {
  return join(FIXTURES, set, set === "chain" ? "img/2" : "img");
}

export function readSet(set: string): LoadedSet {
  return loadImageSet(new ImageSetReader(imagesOf(set)));
}

/** Whether anything on this machine has one of the numbers in a set, be it as a group or a session. */
export function isAnyPidTaken(set: LoadedSet): boolean {
  const pids = [...set.tasks.values()].flatMap(({ pstree }) => [pstree.pid, ...pstree.threads]);
  return [...readPidUsage(new Set(pids))].length > 0;
}

/** Puts binaries and files at their places, as they were at the dump. Returns the directory of the files. */
export function layOut(set: string): string {
  removeLayout();
  mkdirSync(RUN, { recursive: true, mode: 0o755 });
  const bin = join(PLACE, "bin");
  mkdirSync(bin);
  for (const name of readdirSync(join(FIXTURES, "bin"))) {
    copyFileSync(join(FIXTURES, "bin", name), join(bin, name));
    chmodSync(join(bin, name), name.endsWith(".sh") ? 0o644 : 0o755);
  }
  LAYOUTS[set]?.();
  return RUN;
}

export function removeLayout(): void {
  rmSync(PLACE, { recursive: true, force: true });
}

const LAYOUTS: Readonly<Record<string, () => void>> = {
  "shell-loop": () => file("out", { content: "1\n", mode: 0o644 }),
  "threads-pipes": () => execFileSync("mkfifo", ["-m", "600", join(RUN, "fifo")]),
  shmem: mappedFile,
  chain: mappedFile,
  evfds: () => mkdirSync(join(RUN, "watched"), { mode: 0o755 }),
  ghost: () => {
    file("plain", { content: "0123456789", mode: 0o644 });
    file("linked-b", { content: "", mode: 0o600 });
    linkSync(join(RUN, "linked-b"), join(RUN, "link_remap.8"));
    mkdirSync(join(RUN, "cwd"), { mode: 0o755 });
  },
};

function mappedFile(): void {
  const content = Buffer.alloc(4 * 4096);
  content.write("in the file", 4096);
  file("mapped", { content, mode: 0o640 });
}

function file(name: string, { content, mode }: { content: string | Buffer; mode: number }): void {
  writeFileSync(join(RUN, name), content);
  chmodSync(join(RUN, name), mode);
}
