// OCI bundles for runc, crun and containerd: a root file system of busybox, and a configuration made by `runc spec`,
// which a test changes to its liking.

import { spawnSync } from "node:child_process";
import { chmodSync, cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { COUNT } from "./counting.ts";
import type { Host } from "./host.ts";

export interface IdMapping {
  readonly containerID: number;
  readonly hostID: number;
  readonly size: number;
}

/** What tests change in a bundle's configuration. */
export interface BundleConfig {
  process: { terminal: boolean; args: string[] };
  root: { readonly: boolean };
  mounts: { destination: string; type: string; source: string; options?: string[] }[];
  hooks?: Record<string, { path: string; args: string[] }[]>;
  linux: {
    cgroupsPath: string;
    namespaces: { type: string; path?: string }[];
    resources?: { memory?: { limit: number }; pids?: { limit: number } };
    uidMappings?: readonly IdMapping[];
    gidMappings?: readonly IdMapping[];
  };
}

/** Makes a bundle whose process counts, in a cgroup of its name below that of the host; gives its directory. */
export function makeBundle(
  host: Host,
  name: string,
  change: (config: BundleConfig, bundle: string) => void = () => undefined,
): string {
  const bundle = join(host.dir, "bundles", name);
  rmSync(bundle, { recursive: true, force: true });
  mkdirSync(bundle, { recursive: true });
  cpSync(host.rootfs, join(bundle, "rootfs"), { recursive: true, verbatimSymlinks: true });
  // On the host: with cgroup v2 a container has a cgroup namespace.
  host.run("runc", "spec", "--bundle", bundle);
  const file = join(bundle, "config.json");
  const config = JSON.parse(readFileSync(file, "utf8")) as BundleConfig;
  config.process.terminal = false;
  config.process.args = ["sh", "-c", COUNT];
  config.root.readonly = false;
  config.linux.cgroupsPath = `/${host.cgroup}/${name}`;
  change(config, bundle);
  writeFileSync(file, JSON.stringify(config));
  return bundle;
}

/** A bundle that counts into a file in its root. */
export function bundleWithFile(
  host: Host,
  name: string,
  change?: (config: BundleConfig, bundle: string) => void,
): string {
  return makeBundle(host, name, (config, bundle) => {
    config.process.args = ["sh", "-c", `${COUNT} > /root/count`];
    change?.(config, bundle);
  });
}

/** Gives a bundle a user namespace whose root is `firstId` outside, and the files with it. */
export function mapUsers(
  host: Host,
  { config, bundle, firstId }: { config: BundleConfig; bundle: string; firstId: number },
): void {
  const mappings = [{ containerID: 0, hostID: firstId, size: 65_536 }];
  config.linux.namespaces.push({ type: "user" });
  config.linux.uidMappings = mappings;
  config.linux.gidMappings = mappings;
  spawnSync("chown", ["-R", `${firstId}:${firstId}`, join(bundle, "rootfs")]);
  // Its root must be able to reach its files.
  for (const directory of [host.dir, join(host.dir, "bundles"), bundle])
    chmodSync(directory, 0o755);
}
