// The cgroup hierarchies of the running kernel and where the engine reaches them: the unified one (v2, named ""), and on v1 one
// for each set of controllers (`cpu,cpuacct`) or name (`name=systemd`). See cgroups(7). cgroup2 is never mounted anew: a mount
// without options strips those of the host's (nsdelegate, memory_recursiveprot: kernel/cgroup/cgroup.c, cgroup_apply_remount).

import { closeSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import { readCgroups, type CgroupEntry } from "../../proc/cgroup.ts";
import { readMountinfo, type Mount } from "../../proc/mountinfo.ts";
import {
  FSCONFIG_CMD_CREATE,
  FSCONFIG_SET_FLAG,
  FSCONFIG_SET_STRING,
  FSMOUNT_CLOEXEC,
  FSOPEN_CLOEXEC,
} from "../../sys/abi/mount.ts";
import { syscall } from "../../sys/ffi.ts";

/** Name of a hierarchy as the images have it: empty for v2. */
export function hierarchyName({ version, controllers }: CgroupEntry): string {
  return version === 2 ? "" : controllers.join(",");
}

/** Where the hierarchies are mounted, seen by the engine. */
export class Hierarchies {
  readonly #yard: string | undefined;
  readonly #mayMake: boolean;
  readonly #mounts: readonly Mount[];
  /** Mounts in nobody's tree, of v1 hierarchies that are mounted nowhere here. */
  readonly #detached = new Map<string, number | undefined>();

  /**
   * `yard` is a directory with a mount for each hierarchy, by name (`unified` for v2), instead of the machine's mounts; with
   * `mayMake`, hierarchies of v1 that do not exist are made.
   */
  constructor(options: { readonly yard?: string | undefined; readonly mayMake?: boolean } = {}) {
    this.#yard = options.yard;
    this.#mayMake = options.mayMake ?? false;
    this.#mounts = readMountinfo(process.pid).filter(
      ({ fsType, root }) =>
        (fsType === "cgroup" || fsType === "cgroup2") && !root.startsWith("/.."),
    );
  }

  /**
   * Directory of a cgroup.
   *
   * @param name Hierarchy; @param path Path in it, from its root, as /proc/PID/cgroup tells it.
   * @throws RepriseError KERNEL_FEATURE when the hierarchy, or this part of it, is not mounted.
   */
  directory(name: string, path: string): string {
    if (this.#yard !== undefined) {
      const own = name === "" ? "unified" : name.replace(/^name=/, "");
      return join(this.#yard, own, path);
    }
    const directory = this.find(name, path);
    if (directory === undefined) {
      throw new RepriseError(
        "KERNEL_FEATURE",
        `cannot reach cgroup ${path} of the ${describeHierarchy(name)}: it is not mounted here`,
        { hint: "Mount it (see cgroups(7)), or leave cgroups alone with --manage-cgroups=ignore." },
      );
    }
    return directory;
  }

  /** Directory of a cgroup; undefined when it cannot be reached. */
  find(name: string, path: string): string | undefined {
    const mount = this.#mounts
      .filter((candidate) => isOf(candidate, name) && isWithin(path, candidate.root))
      .toSorted((a, b) => a.root.length - b.root.length)[0];
    if (mount === undefined) {
      const detached = this.#mountDetached(name);
      return detached === undefined ? undefined : `/proc/self/fd/${detached}${path}`;
    }
    const below = mount.root === "/" ? path : path.slice(mount.root.length);
    return below === "/" || below === "" ? mount.mountPoint : `${mount.mountPoint}${below}`;
  }

  #mountDetached(name: string): number | undefined {
    // Mounting one that does not exist makes it; with controllers only if v2 does not have them in use (EBUSY).
    const exists = (): boolean =>
      readCgroups(process.pid).some((entry) => hierarchyName(entry) === name);
    if (name === "" || (!this.#mayMake && !exists())) return undefined;
    if (!this.#detached.has(name)) {
      let fd: number | undefined;
      try {
        fd = openHierarchy(name);
      } catch (error) {
        log.debug(`cannot mount the ${describeHierarchy(name)}: ${String(error)}`);
      }
      this.#detached.set(name, fd);
    }
    return this.#detached.get(name);
  }

  /** Lets the detached mounts go. Directories that were told are of no use any more. */
  close(): void {
    for (const fd of this.#detached.values()) if (fd !== undefined) closeSync(fd);
    this.#detached.clear();
  }
}

/** Mounts a hierarchy of v1 that exists; cgroups(7): one without a mount lives on while tasks are in its cgroups. */
function openHierarchy(name: string): number {
  const context = syscall("fsopen", Buffer.from("cgroup\0"), FSOPEN_CLOEXEC);
  try {
    for (const word of name.startsWith("name=") ? ["none", name] : name.split(",")) {
      const [key = "", value] = word.split("=", 2);
      const command = value === undefined ? FSCONFIG_SET_FLAG : FSCONFIG_SET_STRING;
      const text = value === undefined ? 0 : Buffer.from(`${value}\0`);
      syscall("fsconfig", context, command, Buffer.from(`${key}\0`), text, 0);
    }
    syscall("fsconfig", context, FSCONFIG_CMD_CREATE, 0, 0, 0);
    return syscall("fsmount", context, FSMOUNT_CLOEXEC, 0);
  } finally {
    closeSync(context);
  }
}

/** A hierarchy's name for people. */
export function describeHierarchy(name: string): string {
  return name === "" ? "unified hierarchy (cgroup v2)" : `hierarchy ${name}`;
}

function isOf({ fsType, superOptions }: Mount, name: string): boolean {
  if (name === "") return fsType === "cgroup2";
  return (
    fsType === "cgroup" && name.split(",").every((controller) => superOptions.includes(controller))
  );
}

/** Whether a path is another one or below it. */
export function isWithin(path: string, above: string): boolean {
  return above === "/" || path === above || path.startsWith(`${above}/`);
}
