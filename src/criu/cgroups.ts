// CRIU's options about cgroups as those of the engine.

import type { CgroupDumpOptions, CgroupMode, CgroupRoot } from "../objects/cgroups/dump.ts";
import type { CgroupRestoreOptions } from "../objects/cgroups/restore.ts";
import type { CriuOptions } from "./options.ts";

/** For a dump. @throws RepriseError BAD_ARGUMENT */
export async function cgroupDumpOptions(options: CriuOptions): Promise<CgroupDumpOptions> {
  const controllers = options.lists["cgroup-dump-controller"];
  return {
    ...common(options),
    ...(controllers === undefined ? {} : { dumpedControllers: controllers }),
    ...(await propertyLists(options)),
  };
}

async function propertyLists(options: CriuOptions): Promise<Pick<CgroupDumpOptions, "properties">> {
  const { values } = options;
  if (values["cgroup-props"] === undefined && values["cgroup-props-file"] === undefined) return {};
  const { cgroupProperties } = await import("./cgroup-props.ts");
  return { properties: await cgroupProperties(options) };
}

/** For a restore. */
export function cgroupRestoreOptions(options: CriuOptions): CgroupRestoreOptions {
  // Without a value the option means "soft", which is what holds without it, too: that is not asking in so many words.
  return { ...common(options), isModeExplicit: (options.values["manage-cgroups"] ?? "") !== "" };
}

function common({ values, lists }: CriuOptions): {
  mode: CgroupMode;
  roots: CgroupRoot[];
  yard?: string;
} {
  const yard = values["cgroup-yard"];
  return {
    mode: (values["manage-cgroups"] || "soft") as CgroupMode,
    roots: (lists["cgroup-root"] ?? []).map(cgroupRoot),
    ...(yard === undefined ? {} : { yard }),
  };
}

/** `[CONTROLLER:]/PATH`: a path never has a colon before its first slash. */
function cgroupRoot(text: string): CgroupRoot {
  const slash = text.indexOf("/");
  const colon = text.lastIndexOf(":", slash < 0 ? text.length : slash);
  return colon < 0
    ? { path: text }
    : { controller: text.slice(0, colon), path: text.slice(colon + 1) };
}
