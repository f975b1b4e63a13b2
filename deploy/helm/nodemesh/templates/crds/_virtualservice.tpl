{{- define "nodemesh.schema.virtualService" -}}
description: Where requests and connections to a host go
type: object
properties:
  hosts:
    {{- include "nodemesh.schema.strings" "Hosts that the routes are for: names of services, full host names, or ends of these behind a star" | nindent 4 }}
  gateways:
    {{- include "nodemesh.schema.strings" "Where the routes are in force: mesh for clients in the mesh, which it is without any, or names of gateways" | nindent 4 }}
  exportTo:
    {{- include "nodemesh.schema.strings" "Namespaces of the clients that it is for: names, . for its own, * for all" | nindent 4 }}
  http:
    description: Routes of HTTP requests; the first that matches counts
    type: array
    items:
      {{- include "nodemesh.schema.httpRoute" . | nindent 6 }}
  tls:
    description: Routes of TLS connections by the name that clients ask for; the first that matches counts
    type: array
    items:
      type: object
      required: [match]
      properties:
        match:
          type: array
          items:
            type: object
            required: [sniHosts]
            properties:
              sniHosts:
                {{- include "nodemesh.schema.strings" "Names of which clients ask for one in the handshake" | nindent 16 }}
              {{- include "nodemesh.schema.connectionMatch" . | nindent 14 }}
        route:
          {{- include "nodemesh.schema.connectionRoute" . | nindent 10 }}
  tcp:
    description: Routes of other connections; the first that matches counts
    type: array
    items:
      type: object
      properties:
        match:
          type: array
          items:
            type: object
            properties:
              sourceSubnet:
                type: string
              {{- include "nodemesh.schema.connectionMatch" . | nindent 14 }}
        route:
          {{- include "nodemesh.schema.connectionRoute" . | nindent 10 }}
{{- end }}

{{- define "nodemesh.schema.httpRoute" -}}
type: object
properties:
  name:
    description: For logs
    type: string
  match:
    description: Requests that it is for, those of any of these; all of them without it
    type: array
    items:
      {{- include "nodemesh.schema.httpMatch" . | nindent 6 }}
  route:
    description: Where the requests go
    type: array
    items:
      type: object
      required: [destination]
      properties:
        destination:
          {{- include "nodemesh.schema.routeDestination" . | nindent 10 }}
        weight:
          {{- include "nodemesh.schema.weight" . | nindent 10 }}
        headers:
          {{- include "nodemesh.schema.headers" . | nindent 10 }}
  redirect:
    {{- include "nodemesh.schema.redirect" . | nindent 4 }}
  directResponse:
    description: The mesh answers itself
    type: object
    required: [status]
    properties:
      status:
        type: integer
        minimum: 200
        maximum: 599
      body:
        type: object
        maxProperties: 1
        properties:
          string:
            type: string
          bytes:
            type: string
            format: byte
  delegate:
    description: The virtual service, one without hosts, whose routes decide
    type: object
    required: [name]
    properties:
      name:
        type: string
        minLength: 1
      namespace:
        type: string
  rewrite:
    description: What becomes another before a request goes on
    type: object
    properties:
      uri:
        type: string
      authority:
        type: string
      uriRegexRewrite:
        type: object
        properties:
          match:
            type: string
            maxLength: 1024
          rewrite:
            type: string
  timeout:
    {{- include "nodemesh.schema.duration" "How long a request may take with all that is tried; without it as long as it takes" | nindent 4 }}
  retries:
    {{- include "nodemesh.schema.retries" . | nindent 4 }}
  fault:
    {{- include "nodemesh.schema.fault" . | nindent 4 }}
  mirror:
    {{- include "nodemesh.schema.routeDestination" . | nindent 4 }}
  mirrors:
    description: Who gets copies of requests
    type: array
    items:
      type: object
      required: [destination]
      properties:
        destination:
          {{- include "nodemesh.schema.routeDestination" . | nindent 10 }}
        percentage:
          {{- include "nodemesh.schema.percentage" . | nindent 10 }}
  mirrorPercentage:
    {{- include "nodemesh.schema.percentage" . | nindent 4 }}
  {{- range tuple "mirrorPercent" "mirror_percent" }}
  {{ . }}:
    {{- include "nodemesh.schema.percent" $ | nindent 4 }}
  {{- end }}
  corsPolicy:
    {{- include "nodemesh.schema.corsPolicy" . | nindent 4 }}
  headers:
    {{- include "nodemesh.schema.headers" . | nindent 4 }}
{{- end }}

{{- define "nodemesh.schema.httpMatch" -}}
type: object
properties:
  {{- range tuple "name" "statPrefix" "sourceNamespace" }}
  {{ . }}:
    type: string
  {{- end }}
  {{- range tuple "uri" "scheme" "method" "authority" }}
  {{ . }}:
    {{- include "nodemesh.schema.textMatch" $ | nindent 4 }}
  {{- end }}
  {{- range tuple "headers" "withoutHeaders" "queryParams" }}
  {{ . }}:
    type: object
    additionalProperties:
      {{- include "nodemesh.schema.textMatch" $ | nindent 6 }}
  {{- end }}
  ignoreUriCase:
    type: boolean
  port:
    {{- include "nodemesh.schema.portOrNone" . | nindent 4 }}
  sourceLabels:
    type: object
    additionalProperties:
      type: string
  gateways:
    {{- include "nodemesh.schema.strings" "Where it is in force, instead of what is said of the whole" | nindent 4 }}
{{- end }}

{{- /* How a text is compared; an empty object takes any that is there. */ -}}
{{- define "nodemesh.schema.textMatch" -}}
type: object
maxProperties: 1
properties:
  exact:
    type: string
  prefix:
    type: string
  regex:
    type: string
    maxLength: 1024
{{- end }}

{{- define "nodemesh.schema.connectionMatch" -}}
destinationSubnets:
  {{- include "nodemesh.schema.strings" "Addresses or CIDRs, of which clients connect to one" | nindent 2 }}
port:
  {{- include "nodemesh.schema.portOrNone" . | nindent 2 }}
sourceLabels:
  type: object
  additionalProperties:
    type: string
sourceNamespace:
  type: string
gateways:
  {{- include "nodemesh.schema.strings" "Where it is in force, instead of what is said of the whole" | nindent 2 }}
{{- end }}

{{- define "nodemesh.schema.connectionRoute" -}}
description: Where the connections go
type: array
items:
  type: object
  required: [destination]
  properties:
    destination:
      {{- include "nodemesh.schema.routeDestination" . | nindent 6 }}
    weight:
      {{- include "nodemesh.schema.weight" . | nindent 6 }}
{{- end }}

{{- define "nodemesh.schema.routeDestination" -}}
type: object
required: [host]
properties:
  host:
    description: A service, by its name or its full host name
    type: string
    minLength: 1
  subset:
    description: A part of it that a DestinationRule names
    type: string
  port:
    type: object
    properties:
      number:
        type: integer
        minimum: 1
        maximum: 65535
{{- end }}

{{- define "nodemesh.schema.weight" -}}
description: Its share, in parts of the sum of all
type: integer
format: int32
minimum: 0
{{- end }}

{{- define "nodemesh.schema.portOrNone" -}}
description: The port that clients connect to; any without it, or with 0
type: integer
minimum: 0
maximum: 65535
{{- end }}

{{- define "nodemesh.schema.percentage" -}}
type: object
properties:
  value:
    type: number
    minimum: 0
    maximum: 100
{{- end }}

{{- define "nodemesh.schema.percent" -}}
type: integer
minimum: 0
maximum: 100
{{- end }}

{{- define "nodemesh.schema.headers" -}}
description: How headers are changed on the way; remove comes first, then set, then add
type: object
properties:
  {{- range tuple "request" "response" }}
  {{ . }}:
    type: object
    properties:
      {{- range tuple "set" "add" }}
      {{ . }}:
        type: object
        additionalProperties:
          type: string
      {{- end }}
      remove:
        type: array
        items:
          type: string
          minLength: 1
  {{- end }}
{{- end }}

{{- define "nodemesh.schema.redirect" -}}
description: The client is told to ask elsewhere
type: object
properties:
  {{- range tuple "uri" "prefixRewrite" "authority" }}
  {{ . }}:
    type: string
  {{- end }}
  port:
    {{- include "nodemesh.schema.portOrNone" . | nindent 4 }}
  derivePort:
    type: string
    enum: [FROM_PROTOCOL_DEFAULT, FROM_REQUEST_PORT]
  scheme:
    type: string
    enum: [http, https]
  redirectCode:
    type: integer
    minimum: 0
    maximum: 399
{{- end }}

{{- define "nodemesh.schema.retries" -}}
description: How often and when a request is tried again
type: object
properties:
  attempts:
    {{- include "nodemesh.schema.count" . | nindent 4 }}
  perTryTimeout:
    {{- include "nodemesh.schema.duration" "How long each try may take" | nindent 4 }}
  retryOn:
    description: Reasons to try again, with commas between them
    type: string
    maxLength: 1024
  backoff:
    {{- include "nodemesh.schema.duration" "The pause before the next try, which grows with each" | nindent 4 }}
  retryIgnorePreviousHosts:
    type: boolean
  retryRemoteLocalities:
    type: boolean
{{- end }}

{{- define "nodemesh.schema.fault" -}}
description: What is done to some requests on purpose
type: object
properties:
  delay:
    type: object
    properties:
      fixedDelay:
        {{- include "nodemesh.schema.duration" "How long they wait" | nindent 8 }}
      percentage:
        {{- include "nodemesh.schema.percentage" . | nindent 8 }}
      percent:
        {{- include "nodemesh.schema.percent" . | nindent 8 }}
      exponentialDelay:
        type: string
  abort:
    type: object
    properties:
      httpStatus:
        type: integer
        minimum: 200
        maximum: 599
      grpcStatus:
        type: string
      http2Error:
        type: string
      percentage:
        {{- include "nodemesh.schema.percentage" . | nindent 8 }}
{{- end }}

{{- define "nodemesh.schema.corsPolicy" -}}
description: Which pages of other origins may have a browser send such requests
type: object
properties:
  allowOrigins:
    type: array
    items:
      {{- include "nodemesh.schema.textMatch" . | nindent 6 }}
  {{- range tuple "allowOrigin" "allowMethods" "allowHeaders" "exposeHeaders" }}
  {{ . }}:
    type: array
    items:
      type: string
      minLength: 1
  {{- end }}
  maxAge:
    {{- include "nodemesh.schema.duration" "How long a browser may remember what it was told" | nindent 4 }}
  allowCredentials:
    type: boolean
  unmatchedPreflights:
    type: string
    enum: [UNSPECIFIED, FORWARD, IGNORE]
{{- end }}
