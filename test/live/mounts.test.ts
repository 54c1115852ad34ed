// Mount namespaces: see test/programs/mount_namespaces.c.

import { testRoom } from "./suite.ts";

testRoom("mounts");
