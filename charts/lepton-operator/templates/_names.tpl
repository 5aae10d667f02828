{{- define "lepton.name" -}}
{{- if contains "lepton" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ .Release.Name | trunc 43 | trimSuffix "-" }}-lepton{{ end }}
{{- end }}

{{- define "lepton.coordinator" -}}{{ include "lepton.name" . }}-coordinator{{- end }}
{{- define "lepton.caSecret" -}}{{ include "lepton.coordinator" . }}-ca{{- end }}

{{- define "lepton.selector" -}}
app.kubernetes.io/name: lepton-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "lepton.labels" -}}
{{ include "lepton.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* An unquoted tag of digits arrives as a number, its leading zeros and its exact digits gone: nothing that could be put right here. */ -}}
{{- define "lepton.tag" -}}
{{- if not (kindIs "string" .Values.image.tag) }}
{{- fail (printf "image.tag is the number %s: put it in quotes in the values file (tag: \"...\"), or use --set-string image.tag=..." (toJson .Values.image.tag)) }}
{{- end }}
{{- .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* Of (list . name): the registry, the name, and the common tag unless the name has a tag or digest of its own. */ -}}
{{- define "lepton.image" -}}
{{- $root := first . }}{{ $name := last . }}
{{- with $root.Values.image.registry }}{{ . }}/{{ end }}{{ $name }}
{{- if not (regexMatch ":[^/]+$" $name) }}:{{ include "lepton.tag" $root }}{{ end }}
{{- end }}

{{- /* What the operator needs in each namespace whose jobs it runs; one list for a ClusterRole and for Roles. */ -}}
{{- define "lepton.jobRules" -}}
- apiGroups: [training.lepton.ai]
  resources: [leptontrainingjobs]
  verbs: [get, list, watch]
- apiGroups: [training.lepton.ai]
  resources: [leptontrainingjobs/status]
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
# Headless Services of jobs with intraJobCommunication; Deployment and Service of jobs that serve their model.
- apiGroups: [""]
  resources: [services]
  verbs: [get, create, update, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, create, update, delete]
# What the kubelet says of a pod that does not start.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
