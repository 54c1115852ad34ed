// containerd of the tests' own, on a host of the tests' own, with an image of busybox.

import { createHash } from "node:crypto";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { startDaemon } from "./daemon.ts";
import {
  canHost,
  hasProgram,
  logsBelow,
  startHost,
  type CgroupVersion,
  type Host,
} from "./host.ts";

export const IMAGE = "docker.io/library/busybox:latest";

export interface Containerd {
  readonly host: Host;
  /** Runs `ctr`; its output without the last newline. Throws with what it said when it fails. */
  readonly ctr: (...args: readonly string[]) => string;
  try(...args: readonly string[]): { readonly status: number | null; readonly output: string };
  stop(): Promise<void>;
}

export function canRunContainerd(version: CgroupVersion): boolean {
  return canHost(version) && hasProgram("containerd") && hasProgram("ctr");
}

/** Starts a containerd with the image IMAGE and waits until it answers. */
export async function startContainerd(version: CgroupVersion, criu?: string): Promise<Containerd> {
  const host = await startHost(version, criu);
  const { dir } = host;
  const socket = join(dir, "containerd.sock");
  const daemon = startDaemon(host, "containerd", ["--config", writeConfig(dir, socket)]);
  const words = (args: readonly string[]): [string, ...string[]] => ["ctr", "-a", socket, ...args];
  const containerd: Containerd = {
    host,
    try: (...args) => host.try(...words(args)),
    ctr(...args) {
      const { status, output } = containerd.try(...args);
      if (status !== 0) {
        throw new Error(
          `ctr ${args.join(" ")}: ${output}\n${logsBelow(dir)}\n${daemon.lastLines()}`,
        );
      }
      return output;
    },
    async stop() {
      removeAll(containerd);
      await daemon.stop();
      await host.stop();
    },
  };
  try {
    await daemon.waitUntil(() => containerd.try("version").status === 0);
    containerd.ctr("image", "import", makeImage(host));
    return containerd;
  } catch (error) {
    await containerd.stop();
    throw error;
  }
}

/** Everything in the host's directory, and none of the parts that would look at the machine's. */
function writeConfig(dir: string, socket: string): string {
  const file = join(dir, "containerd.toml");
  const lines = [
    "version = 2",
    `root = "${dir}/containerd"`,
    `state = "${dir}/containerd-run"`,
    'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]',
    "[grpc]",
    `address = "${socket}"`,
    "[ttrpc]",
    `address = "${socket}.ttrpc"`,
  ];
  writeFileSync(file, `${lines.join("\n")}\n`);
  return file;
}

/** The root file system as an archive of the form that `docker save` makes. */
function makeImage({ dir, rootfs }: Host): string {
  const parts = join(dir, "image");
  mkdirSync(parts);
  execFileSync("tar", ["-C", rootfs, "-cf", join(parts, "layer.tar"), "."]);
  const digest = createHash("sha256")
    .update(readFileSync(join(parts, "layer.tar")))
    .digest("hex");
  const config = {
    architecture: "amd64",
    os: "linux",
    config: { Env: ["PATH=/bin"] },
    rootfs: { type: "layers", diff_ids: [`sha256:${digest}`] },
  };
  const manifest = [{ Config: "config.json", RepoTags: [IMAGE], Layers: ["layer.tar"] }];
  writeFileSync(join(parts, "config.json"), JSON.stringify(config));
  writeFileSync(join(parts, "manifest.json"), JSON.stringify(manifest));
  const archive = join(dir, "image.tar");
  execFileSync("tar", ["-C", parts, "-cf", archive, "manifest.json", "config.json", "layer.tar"]);
  return archive;
}

function removeAll(containerd: Containerd): void {
  const list = (what: string): string[] => {
    const { status, output } = containerd.try(what, "ls", "-q");
    return status === 0 ? output.split("\n").filter(Boolean) : [];
  };
  for (const task of list("task")) containerd.try("task", "rm", "-f", task);
  for (const container of list("container")) containerd.try("container", "rm", container);
}
