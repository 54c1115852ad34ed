// The cgroup hierarchies of the running kernel and where the engine reaches them: the unified one (v2, named ""), and on v1 one
// for each set of controllers (`cpu,cpuacct`) or name (`name=systemd`). See cgroups(7). cgroup2 is never mounted anew: a mount
// without options strips those of the host's (nsdelegate, memory_recursiveprot: kernel/cgroup/cgroup.c, cgroup_apply_remount).

import { join } from "node:path";
import { RepriseError } from "../../errors.ts";
import type { CgroupEntry } from "../../proc/cgroup.ts";
import { readMountinfo, type Mount } from "../../proc/mountinfo.ts";

/** Name of a hierarchy as the images have it: empty for v2. */
export function hierarchyName({ version, controllers }: CgroupEntry): string {
  return version === 2 ? "" : controllers.join(",");
}

/** Where the hierarchies are mounted, seen by the engine. */
export class Hierarchies {
  readonly #yard: string | undefined;
  readonly #mounts: readonly Mount[];

  /** @param yard Directory with a mount for each hierarchy, by name (`unified` for v2), instead of the machine's mounts. */
  constructor(yard?: string) {
    this.#yard = yard;
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
    if (mount === undefined) return undefined;
    const below = mount.root === "/" ? path : path.slice(mount.root.length);
    return below === "/" || below === "" ? mount.mountPoint : `${mount.mountPoint}${below}`;
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
