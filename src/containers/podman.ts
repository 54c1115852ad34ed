// Podman, by its command. It can put a checkpoint into an archive and make any number of containers from it, each with a name, an
// id and cgroups of its own. The archives are kept in reprise's home.

import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { homeDirectory } from "../store/home.ts";
import { runCommand } from "./command.ts";
import { nextName, type ContainerEngine } from "./container-engine.ts";

const ARCHIVE = ".tar.zst";

export const podman: ContainerEngine = {
  checkpoint(container, { leaveRunning }) {
    const name = nextName(list(container));
    const directory = archivesOf(container);
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    const running = leaveRunning ? ["--leave-running"] : [];
    const archive = join(directory, `${name}${ARCHIVE}`);
    runCommand(["podman", "container", "checkpoint", "--export", archive, ...running, container]);
    return Promise.resolve(name);
  },
  visitors(container) {
    const words = ["podman", "container", "inspect", "-f", "{{len .ExecIDs}}", container] as const;
    return Promise.resolve(Number(runCommand(words)));
  },
  checkpoints(container) {
    return Promise.resolve(list(container));
  },
  images() {
    return Promise.resolve(undefined);
  },
  restore(container, checkpoint) {
    const archive = join(archivesOf(container), `${checkpoint}${ARCHIVE}`);
    // An import makes the container; the stopped one that it was makes room for it.
    const id = runCommand(["podman", "container", "inspect", "-f", "{{.Name}}", container]);
    runCommand(["podman", "container", "rm", container]);
    runCommand(["podman", "container", "restore", "--import", archive, "--name", id]);
    return Promise.resolve();
  },
  clone(container, { checkpoint, newName }) {
    const archive = join(archivesOf(container), `${checkpoint}${ARCHIVE}`);
    runCommand(["podman", "container", "restore", "--import", archive, "--name", newName]);
    return Promise.resolve([]);
  },
};

function list(container: string): string[] {
  const directory = archivesOf(container);
  if (!existsSync(directory)) return [];
  return readdirSync(directory)
    .filter((name) => name.endsWith(ARCHIVE))
    .map((name) => name.slice(0, -ARCHIVE.length))
    .toSorted((a, b) => a.localeCompare(b, "en", { numeric: true }));
}

function archivesOf(container: string): string {
  return join(homeDirectory(), "containers", "podman", container.replaceAll("/", "_"));
}
