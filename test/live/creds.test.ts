import { testRoom } from "./suite.ts";

testRoom("creds");
