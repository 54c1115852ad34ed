// Podman, by its command. It can put a checkpoint into an archive and make any number of containers from it, each with a name, an
// id and cgroups of its own. The archives are kept in reprise's home.

import { existsSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import { homeDirectory } from "../store/home.ts";
import { runCommand, succeeds } from "./command.ts";
import { nextName, type ContainerEngine } from "./container-engine.ts";

const ARCHIVE = ".tar.zst";

export const podman: ContainerEngine = {
  checkpoint(container, { leaveRunning }) {
    const name = nextName(list(container));
    const directory = archivesOf(container);
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    const running = leaveRunning ? ["--leave-running"] : [];
    const archive = join(directory, `${name}${ARCHIVE}`);
    try {
      runCommand(["podman", "container", "checkpoint", "--export", archive, ...running, container]);
    } catch (error) {
      rmSync(archive, { force: true });
      throw error;
    }
    return Promise.resolve(name);
  },
  isThere: (container) => Promise.resolve(succeeds(["podman", "container", "exists", container])),
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
    const [name = "", status = ""] = inspect(container, "{{.Name}} {{.State.Status}}").split(" ");
    if (status === "running" || status === "paused") {
      throw new RepriseError(
        "CONTAINER_ENGINE",
        `cannot restore the container ${container}: it is ${status}`,
        { hint: `Stop it first: podman stop ${container}` },
      );
    }
    // An import makes the container; the stopped one that it was makes room for it, and goes when the other is there.
    const volumes = volumeOptions(container);
    const aside = `${name}-before-${checkpoint}`;
    runCommand(["podman", "container", "rename", name, aside]);
    try {
      importArchive(archive, { name, volumes });
    } catch (error) {
      runCommand(["podman", "container", "rename", aside, name]);
      throw error;
    }
    runCommand(["podman", "container", "rm", aside]);
    return Promise.resolve();
  },
  clone(container, { checkpoint, newName }) {
    const archive = join(archivesOf(container), `${checkpoint}${ARCHIVE}`);
    const volumes = volumeOptions(container);
    importArchive(archive, { name: newName, volumes });
    return Promise.resolve(
      volumes.length === 0 ? [] : [`it shares the volumes of ${container}, as they are now`],
    );
  },
};

function inspect(container: string, format: string): string {
  return runCommand(["podman", "container", "inspect", "-f", format, container]);
}

function importArchive(
  archive: string,
  { name, volumes }: { readonly name: string; readonly volumes: readonly string[] },
): void {
  runCommand(["podman", "container", "restore", "--import", archive, ...volumes, "--name", name]);
}

/** Volumes outlive containers; an import would make them, and fails where they are (podman-container-restore(1)). */
function volumeOptions(container: string): string[] {
  const format = '{{range .Mounts}}{{if eq .Type "volume"}}volume {{end}}{{end}}';
  return inspect(container, format).includes("volume") ? ["--ignore-volumes"] : [];
}

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
