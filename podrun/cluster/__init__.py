"""Several hosts: pods as resources of a Pacemaker cluster. Pacemaker decides what runs where.

pods            what a pod file asks of a cluster, and what a cluster cannot do for it
configuration   pods as resources and constraints, in crm's words
pacemaker       what the cluster says and is told: crm_mon's XML, crm, crm_resource
hosts           a command on another host, by ssh
files           pod files on every host, the same everywhere
ocf-pod         the resource agent, ocf:podrun:pod
"""
